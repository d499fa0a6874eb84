"""Numbers — what streams of rows add up to; nothing here knows of stores or files.

May import `_rows`, for blocks and groups. Most are *states*: they take blocks one by one and can be merged,
so that a pass can run on several workers:

======================  ===============================================================================
`moments`               mean and covariance, of all rows or per group
`sketch`                quantiles and histograms of positive numbers
`topk`                  the best rows for each of many queries
`scores`                AUROC, calibration and other metrics of probabilities, with intervals
`draws`                 how often each row counts in a bootstrap
`regression`            R² and errors of predicted numbers, with intervals
`linear`                logistic and ridge regression over rows that are read again and again
======================  ===============================================================================
"""
