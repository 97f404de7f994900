"""How large each defect of the published code is: the paper protocol with and without it."""
