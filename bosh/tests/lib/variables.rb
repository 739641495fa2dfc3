# frozen_string_literal: true

require 'openssl'

# The variables of a manifest, `((name))` and `((name.part))`, with generated values as the
# config server makes them: passwords, and certificates signed by their CAs.
class Variables
  REFERENCE = /\(\(!?([\w\/-]+)(?:\.([\w.-]+))?\)\)/

  # `given`: values that an operator passes, such as system_domain.
  def initialize(definitions, given)
    @definitions = definitions.to_h { |definition| [definition.fetch('name'), definition] }
    @given = given
    @values = {}
    @keys = {}
  end

  # Names in `node` without a definition.
  def dangling(node) = references(node).map(&:first).uniq.reject { |name| known?(name) }

  def interpolate(node)
    case node
    when Hash then node.transform_values { |value| interpolate(value) }
    when Array then node.map { |value| interpolate(value) }
    when String then interpolate_text(node)
    else node
    end
  end

  def value(name) = @values[name] ||= @given[name] || generate(@definitions.fetch(name))

  private

  def known?(name) = @definitions.key?(name) || @given.key?(name)

  def references(node)
    case node
    when Hash then node.values.flat_map { |value| references(value) }
    when Array then node.flat_map { |value| references(value) }
    when String then node.scan(REFERENCE)
    else []
    end
  end

  def interpolate_text(text)
    whole = text.match(/\A#{REFERENCE}\z/o)
    return part(whole[1], whole[2]) if whole

    text.gsub(REFERENCE) { part(Regexp.last_match(1), Regexp.last_match(2)).to_s }
  end

  def part(name, key)
    return value(name) unless key

    value(name).is_a?(Hash) && value(name)[key] or raise KeyError, "variable #{name} has no part #{key}"
  end

  def generate(definition)
    name, type, options = definition.values_at('name', 'type', 'options')
    return "p@ss/w:rd?#%41 #{name}" if type == 'password'
    raise "type #{type} of variable #{name} is not known" unless type == 'certificate'

    certificate(name, options)
  end

  def certificate(name, options)
    key = OpenSSL::PKey::EC.generate('prime256v1')
    ca = options['ca']
    issuer = ca && OpenSSL::X509::Certificate.new(value(ca)['certificate'])
    certificate = unsigned(interpolate(options), key, issuer)
    certificate.sign(ca ? @keys.fetch(ca) : key, 'SHA256')
    @keys[name] = key
    { 'certificate' => certificate.to_pem, 'private_key' => key.private_to_pem,
      'ca' => ca ? issuer.to_pem : certificate.to_pem }
  end

  def unsigned(options, key, issuer)
    certificate = OpenSSL::X509::Certificate.new
    certificate.version = 2
    certificate.serial = @keys.length + 1
    certificate.subject = OpenSSL::X509::Name.new([['CN', options.fetch('common_name')]])
    certificate.issuer = issuer ? issuer.subject : certificate.subject
    certificate.public_key = key
    certificate.not_before = Time.now - 60
    certificate.not_after = Time.now + (30 * 86_400)
    extensions(options).each { |extension| certificate.add_extension(extension) }
    certificate
  end

  def extensions(options)
    factory = OpenSSL::X509::ExtensionFactory.new
    usages = options.fetch('extended_key_usage', []).map { |usage| usage.sub('_auth', 'Auth') }
    names = options.fetch('alternative_names', []).map { |name| "DNS:#{name}" }
    [factory.create_extension('basicConstraints', "CA:#{options['is_ca'] ? 'TRUE' : 'FALSE'}", true),
     (factory.create_extension('extendedKeyUsage', usages.join(',')) unless usages.empty?),
     (factory.create_extension('subjectAltName', names.join(',')) unless names.empty?)].compact
  end
end
