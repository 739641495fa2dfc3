# frozen_string_literal: true

require 'minitest/autorun'
require 'openssl'
require_relative 'lib/release'

# The rendered scripts of cell-agent with the real agent, in a network namespace of their
# own, without a policy store.
class CellAgentTest < Minitest::Test
  JOB = 'var/vcap/jobs/cell-agent'

  def test_post_start_goes_on_without_a_policy_store
    output, success = cell(start: true)
    assert success, output
    assert_match(/^warning: cell-agent has no connection to the policy store after 1 s: policy-store: /, output)
  end

  def test_post_start_fails_without_a_usable_certificate
    output, success = cell(start: true, certificates: %w[CA CERT KEY])
    refute success, output
    assert_match(/^cell-agent is not ready after 1 s: /, output)
    assert_match(/^policy-store-certificate: /, output)
  end

  def test_post_start_fails_without_an_agent
    output, success = cell(start: false)
    refute success, output
    assert_match(%r{^cell-agent is not ready after 1 s: no response from http://127.0.0.1:8721/readyz$}, output)
  end

  # pre-start and stop leave the rules of others alone, whatever they are.
  def test_the_kernel_keeps_its_rules
    output, = cell(start: true, before: 'iptables -A FORWARD -s 10.255.1.2/32 -j DROP; iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE',
                   after: 'iptables -S FORWARD; iptables -t nat -S POSTROUTING')
    assert_match(%r{^-A FORWARD -s 10.255.1.2/32 -j DROP$}, output)
    assert_match(/^-A POSTROUTING -o eth0 -j MASQUERADE$/, output)
  end

  private

  # Runs pre-start, the agent if `start`, post-start, and stops the agent.
  def cell(start:, certificates: certificate, before: '', after: '')
    Dir.mktmpdir do |root|
      write_job(root, certificates)
      %w[container-metadata garden-cni cell-agent].each { |name| FileUtils.mkdir_p("#{root}/var/vcap/data/#{name}") }
      Release.run('timeout', '60', 'unshare', '--map-root-user', '--net', '--mount', 'bash', '-c', <<~SHELL)
        export PATH="$PATH:/usr/sbin:/sbin"
        mount -t tmpfs none /run && ip link set lo up
        #{before}
        #{root}/#{JOB}/bin/pre-start || exit 1
        if #{start}; then #{root}/#{JOB}/bin/cell-agent >#{root}/log 2>&1 & fi
        agent=$! code=0
        # Reasons are sorted: the kernel's would be the first.
        [ -z "$agent" ] || until curl -s --max-time 1 http://127.0.0.1:8721/readyz | head -n 1 | grep -q '^policy-store: the'; do sleep 0.1; done
        #{root}/#{JOB}/bin/post-start || code=$?
        [ -z "$agent" ] || { kill "$agent" && wait "$agent" || code=2; }
        #{after}
        exit "$code"
      SHELL
    end
  end

  # The job below `root`, with its paths.
  def write_job(root, certificates)
    names = %w[ca_cert client_cert client_key]
    change = names.zip(certificates).to_h.merge('portcullis' => { 'post_start_timeout_seconds' => 1, 'policy_store' => { 'address' => '127.0.0.1:4004' } })
    Release.render('cell-agent', 'alone', change.merge('enable_asg_syncing' => true)).each do |file, text|
      path = "#{root}/#{JOB}/#{file}"
      FileUtils.mkdir_p(File.dirname(path))
      text = text.gsub('/var/vcap/packages/portcullis/bin', Release::PROGRAMS).gsub('/var/vcap/', "#{root}/var/vcap/")
      File.write(path, text.gsub('"10.0.16.5"', '"127.0.0.1"'), perm: 0o755)
    end
  end

  # A self-signed certificate: CA, certificate and key.
  def certificate
    key = OpenSSL::PKey::EC.generate('prime256v1')
    cert = OpenSSL::X509::Certificate.new
    cert.version = 2
    cert.serial = 1
    cert.subject = cert.issuer = OpenSSL::X509::Name.parse('/CN=portcullis-cell')
    cert.not_before = Time.now - 60
    cert.not_after = Time.now + 3600
    cert.public_key = OpenSSL::PKey::EC.new(key.public_to_pem)
    cert.sign(key, OpenSSL::Digest.new('SHA256'))
    [cert.to_pem, cert.to_pem, key.to_pem]
  end
end
