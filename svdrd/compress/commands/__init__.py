"""The commands of ``svdrd``, one file each: options, a call of what lives in the other folders, what is printed."""
