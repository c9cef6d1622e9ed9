"""No socket beyond this machine: addresses, the guard on sockets, and a network that holds only loopback."""
