"""Photographs: folders of them, their order in training, data sets to fetch, and the quality of a decoded one."""
