"""What each verb does on the terminal; imported when it runs, so that ``ofg --help`` stays quick."""
