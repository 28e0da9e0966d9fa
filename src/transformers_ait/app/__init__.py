"""The page of `transformers-ait app`: one picture in, a tab for every task of a checkpoint.

`checkpoints` and `results` run models and keep what they found, `read_out`, `views` and `point_cloud` make of it what
is shown, and know no Gradio; `panels` and `page` lay it out with Gradio, which nothing else imports.
"""
