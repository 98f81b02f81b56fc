"""The agent daemon: one per serving instance, with the engines that it can drive."""
