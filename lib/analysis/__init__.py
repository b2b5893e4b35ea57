"""Looking at the vision-text modality gap before and after a bridge: tables, metrics, projections, figures, report.

embeddings            the table that every other file reads
gap, gap_report       the metrics as pure functions; every state and split with intervals
projections           gap axis, PCA, t-SNE, UMAP, with parameters and seed beside the coordinates
scene, view           one row a point in every state; what is looked at, apart from how it is shown
explorer, panes       the live view for JupyterLab: cards, gallery, heatmap, thumbnails are its parts
scatter, interactive  the same view as a matplotlib figure and as one HTML file
figures, pictures     metrics, similarities, training, results; boxes and patch maps on images
summary, report       what the numbers say; report.html and summary_report.txt of a run
"""
