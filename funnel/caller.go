package funnel

import "context"

// callerKey is the key of a Caller in a request's context.
type callerKey struct{}

// withCaller is ctx of something that c asks for.
func withCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf is who asks for what ctx is of. Without one, nothing may be granted.
func callerOf(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}
