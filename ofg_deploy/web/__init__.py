"""A registration in a browser: what its page is given, and the server of ``ofg view``. The page itself is ``web/``."""
