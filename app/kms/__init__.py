"""Key management services behind one small Protocol: ``provider``, then one file for each."""
