"""Model families. Each family says how its weights are named and how a layer computes; `decoder` runs the layers."""
