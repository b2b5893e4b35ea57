"""Looking at the vision-text modality gap before and after a bridge: tables, metrics, projections, figures, report.

embeddings    the table every other file reads         gap, gap_report   metrics and their intervals
projections   PCA, t-SNE and UMAP, fitted once          figures, pictures, interactive   static and HTML figures
explorer      the live view for JupyterLab              report            report.html and summary.txt of a run
"""
