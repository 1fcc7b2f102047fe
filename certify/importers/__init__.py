"""Networks, specifications and weights from files and from torch; no file is ever trusted."""
