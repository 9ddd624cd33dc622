"""Arms of fine-tuning compared: their results, BD-rates, losses, intervals, tables, figures."""
