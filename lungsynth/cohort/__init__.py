"""From CT volumes to a cohort: training sets with labels and a split by patient."""
