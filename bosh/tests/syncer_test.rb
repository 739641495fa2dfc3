# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'

# Where the syncer's job takes addresses and certificates from.
class SyncerTest < Minitest::Test
  JOB = 'policy-server-asg-syncer'

  def test_a_manifest_for_the_original
    files = Release.render(JOB, 'minimal', { 'locket' => { 'client_cert' => 'LOCKET_CERT', 'client_key' => 'LOCKET_KEY' } })
    assert_equal 'https://cloud-controller-ng.service.cf.internal:9024', config(files)['cc_url']
    assert_equal 'https://cloud-controller-ng.service.cf.internal:9023', config(files)['cc_internal_url']
    assert_equal 'policy-server.service.cf.internal:4004', config(files)['policy_store_address']
    assert_equal "CA\n", files['config/certs/policy_store_ca.crt']
    assert_equal "LOCKET_CERT\n", files['config/certs/policy_store.crt']
    assert_equal "LOCKET_KEY\n", files['config/certs/policy_store.key']
  end

  def test_the_link_of_the_policy_store
    files = Release.render(JOB, 'linked')
    assert_equal 'store.internal:4104', config(files)['policy_store_address']
    assert_equal "STORE_CA\n", files['config/certs/policy_store_ca.crt']
    assert_equal "STORE_CERT\n", files['config/certs/policy_store.crt']
  end

  def test_properties_win_over_links
    change = { 'cc_hostname' => 'cc.internal', 'cc_port' => 9022,
               'portcullis' => { 'policy_store' => { 'address' => '10.0.16.8:4005', 'ca_cert' => 'OWN_CA' } } }
    files = Release.render(JOB, 'linked', change)
    assert_equal 'http://cc.internal:9022', config(files)['cc_url']
    assert_equal '10.0.16.8:4005', config(files)['policy_store_address']
    assert_equal "OWN_CA\n", files['config/certs/policy_store_ca.crt']
  end

  def test_poll_interval
    minimal = config(Release.render(JOB, 'minimal'))
    times = %w[asg_poll_interval_seconds lock_ttl_seconds lock_retry_interval_seconds]
    assert_empty minimal.keys & times, 'the syncer has better defaults'
    assert_equal 60, config(Release.render(JOB, 'full'))['asg_poll_interval_seconds']
  end

  def test_secret_with_special_characters
    assert_equal "s\"ecret\\/@:%41 ü", config(Release.render(JOB, 'full'))['uaa_client_secret']
  end

  private

  def config(files) = JSON.parse(files["config/#{JOB}.json"])
end
