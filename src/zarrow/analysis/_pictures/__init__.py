"""Pictures — answers drawn as figures, and the parts of the report's page.

Behind the doors `plot` and `report`. May import `_questions`, `_numbers` and `_rows`. Pictures first, then
what they are drawn from and with:

======================  ===============================================================================
`row_map`               where rows lie on a map, as points or cells
`norms`                 how long the vectors are
`roc_calibration`       how good probabilities are: ROC curves and calibration
`drift`                 how far vectors moved from one store to another
`map_cells`             the points or cells of a map, and its colours
`curves`                calibration along the probability, and the largest groups
`figure`                what every picture is drawn on, and how it becomes a file or part of a page
`notebook_figure`       a figure that a notebook shows
`page`                  the report's page: from figures and tables to HTML
`output`                a file that appears whole or not at all
======================  ===============================================================================
"""
