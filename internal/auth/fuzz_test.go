package auth

import (
	"crypto/sha256"
	"strings"
	"testing"
)

// FuzzParse looks for a line that lets somebody in who is not written there, and
// for an error that quotes a token.
func FuzzParse(f *testing.F) {
	token := NewToken()
	line, err := Line("shop", "subscriber", []string{"shipping"}, token)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line + "\nrobot  reader  san:spiffe://shop/robot # ours\n")
	f.Add(line + "\n" + line)
	f.Add("alice operator og_0123456789\n")
	f.Add("alice root sha256:00\n")
	f.Fuzz(func(t *testing.T, content string) {
		principals, err := parse("access", []byte(content))
		if err != nil {
			if principals != nil {
				t.Error("a file with a mistake lets somebody in")
			}
			return
		}
		names := map[string]bool{}
		for credential, p := range principals {
			if credential != p.credential || !nameShape.MatchString(p.Name) || names[p.Name] || !strings.Contains(content, p.Name) {
				t.Errorf("%q is %+v", credential, p)
			}
			names[p.Name] = true
			if kind, value, _ := strings.Cut(credential, " "); value == "" || kind != "token" && kind != "uri" && kind != "dns" || kind == "token" && len(value) != sha256.Size {
				t.Errorf("credential %q", credential)
			}
		}
	})
}

// What stands where a credential belongs is not quoted.
func FuzzParseQuotesNoToken(f *testing.F) {
	f.Add("og_", "reader")
	f.Add("sha256:", "operator")
	f.Add("", "nobody")
	f.Fuzz(func(t *testing.T, prefix, role string) {
		const token = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"
		if _, err := parse("access", []byte("alice "+role+" "+prefix+token+"\n")); err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("the error tells it: %v", err)
		}
	})
}
