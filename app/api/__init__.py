"""The HTTP face: one route table, one dispatcher, one file of handlers per resource."""
