# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'

# The story on VMs with monit: bosh/vm/story checks each step itself. Needs two minutes,
# most of them for monit to find a process that hangs.
class VmTest < Minitest::Test
  PAGE = File.expand_path('../docs/bosh-story.md', Release::ROOT)

  def test_the_story_and_its_page
    Dir.mktmpdir do |directory|
      page = "#{directory}/bosh-story.md"
      FileUtils.cp(PAGE, page)
      output, success = Release.run("#{Release::ROOT}/vm/story", '--report', page)
      assert success, output
      assert_equal chapters(page), chapters(PAGE), "#{PAGE} is out of date: bosh/vm/story --report #{PAGE}"
    end
  end

  # Which syncer leads first differs.
  def chapters(page) = File.readlines(page, chomp: true).grep(/\A== /).map { |line| line.sub(%r{api/\d}, 'api/N') }
end
