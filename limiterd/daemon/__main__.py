"""`python -m limiterd.daemon` is `limiterd`."""

from limiterd.daemon import main

main()
