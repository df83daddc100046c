"""The report: query results to estimates, figures and one HTML page; needs the store alone."""
