"""What things are: graphs, regions, specifications, certificates, errors."""
