"""Random small networks with known answers, against `certify.verify`."""
