"""Looking at the vision-text modality gap before and after a bridge: tables, metrics, projections, figures, report.

embeddings            the table that every other file reads
gap, gap_report       the metrics as pure functions; every state and split with intervals
projections, scatter  PCA, t-SNE and UMAP, fitted once; their static figures
figures, pictures     metrics, similarities, training, results; boxes and patch maps on images
interactive, explorer plotly HTML; the live view for JupyterLab
summary, report       what the numbers say; report.html and summary.txt of a run
"""
