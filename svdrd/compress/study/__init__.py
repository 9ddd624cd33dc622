"""A whole study from one configuration file: its stages, running them, the report."""
