"""What results look like: tables, competition files, plots. Reads results, computes none."""
