package funnel

func (b *Basic) check() error { return nil }
