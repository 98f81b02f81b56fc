"""The decisions of QLM, and nothing else: no clock, socket, file, thread or log lives here."""
