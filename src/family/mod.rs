//! What each family of models calls its tensors and configuration keys.
