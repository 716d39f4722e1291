"""What a model with inserted mixtures is, as data: where a token's modality comes from, and what each mixture is made of."""
