package orders

// Stripe counts every currency in hundredths, except for these. That is not ISO
// 4217: Stripe keeps ISK and UGX at two digits, and MGA has none.
// https://docs.stripe.com/currencies#zero-decimal
var (
	noDecimals = map[string]bool{
		"bif": true, "clp": true, "djf": true, "gnf": true, "jpy": true, "kmf": true, "krw": true, "mga": true,
		"pyg": true, "rwf": true, "vnd": true, "vuv": true, "xaf": true, "xof": true, "xpf": true,
	}
	threeDecimals = map[string]bool{"bhd": true, "jod": true, "kwd": true, "omr": true, "tnd": true}
)

// currencyExponent returns the number of decimal digits of a currency's amounts at
// Stripe; nil without a currency.
func currencyExponent(currency string) *int32 {
	switch {
	case currency == "":
		return nil
	case noDecimals[currency]:
		return new(int32(0))
	case threeDecimals[currency]:
		return new(int32(3))
	default:
		return new(int32(2))
	}
}
