"""The kernel adapters: netlink samplers, tc, events, socket diagnostics, and the in-memory kernel for tests and replay."""
