"""A complete mail server of separate processes, modelled on OpenSMTPD: what Seatbelt practises on."""
