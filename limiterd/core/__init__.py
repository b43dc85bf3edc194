"""The pure core: no I/O, no clock, no logging. Everything it needs is an argument; everything it decides is returned."""
