"""Pure cryptography: no I/O, no clock, no database. The only place that imports ciphers."""
