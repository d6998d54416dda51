"""Chapter 6: every claim judged on the tables of a run, and beside other finished runs."""
