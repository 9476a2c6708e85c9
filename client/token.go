package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxToken bounds a token, in bytes.
const maxToken = 8 << 10

// TokenSource returns the token for a call. It is called for every call and every new
// stream, by several goroutines, so it should cache the token until it is about to
// expire. If it returns an error, the call fails with UNAVAILABLE, and Consume and
// Watch try again. The context is that of the call.
type TokenSource func(ctx context.Context) (token string, err error)

// TokenFile returns a source that reads the token from a file for each call, as
// platforms such as Kubernetes renew tokens in files. Spaces and line ends around the
// token are ignored.
func TokenFile(name string) TokenSource {
	return func(context.Context) (string, error) {
		file, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer file.Close()
		content, err := io.ReadAll(io.LimitReader(file, maxToken+1))
		if err != nil {
			return "", err
		}
		token := strings.TrimSpace(string(content))
		if err := checkHeaderToken(token); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return token, nil
	}
}

func fixedToken(token string) TokenSource {
	return func(context.Context) (string, error) { return token, nil }
}

// checkHeaderToken refuses what cannot be sent in a header. Errors do not contain the token.
func checkHeaderToken(token string) error {
	switch {
	case token == "":
		return errors.New("the token is empty")
	case len(token) > maxToken:
		return fmt.Errorf("the token has more than %d bytes", maxToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("the token contains a space or another character that is not printable ASCII")
	}
	return nil
}
