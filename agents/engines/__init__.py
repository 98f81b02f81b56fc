"""The engines that an agent can drive, behind one protocol (`base`)."""
