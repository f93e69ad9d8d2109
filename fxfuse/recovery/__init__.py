"""Win back what fusing lost: closed-form corrections, local distillation, distillation end to end."""
