"""Files of registrations -> is each of them good? A page to look at, a table, a verdict. Nothing is registered here."""
