"""What is kept on the disk: journal, requests, audit trail."""
