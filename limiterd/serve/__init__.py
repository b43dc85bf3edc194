"""Who is told, and who asks: metrics, index page, control socket."""
