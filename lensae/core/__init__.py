"""What every room uses: records, settings, errors, files that are written whole, where things lie."""
