"""Images -> checkpoint. torch lives here; the inner optimiser of the guidance lives here and only here."""
