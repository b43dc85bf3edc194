"""A small HTTP(S) server that no client can hold up: wire (requests and answers as values), listen, server (the loop)."""
