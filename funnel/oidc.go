package funnel

func (o *OIDC) check() error { return nil }
