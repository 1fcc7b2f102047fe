"""Independent checking of certificates, without the engine that made them."""
