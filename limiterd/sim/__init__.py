"""A kernel in memory, private network namespaces and real traffic, for tests, replay and demo."""
