package funnel

// Access says who may see what an entry or a mount serves. The zero value lets everybody in.
type Access struct{}

// Check says what of the rules cannot be.
func (Access) Check() error { return nil }
