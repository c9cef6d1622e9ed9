"""Keeping a command to this machine: addresses, the guard on sockets, and a network that holds only loopback."""
