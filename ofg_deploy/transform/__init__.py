"""Maps from fixed to moving world mm: from files and into them, composed, inverted. Each dialect is written once."""
